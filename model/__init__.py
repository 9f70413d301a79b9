"""模型定义：一个文件讲一个部件，从 language_model.py 读起。"""
