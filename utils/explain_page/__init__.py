"""explain.py 写出的网页：data.py 算出数字，page.py 把它们与 page.html、style.css、script/ 装成一个文件。"""
