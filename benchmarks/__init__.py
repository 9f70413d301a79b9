"""测量：与 transformers 的 GPT-2 比较，从 run.py 读起。"""
