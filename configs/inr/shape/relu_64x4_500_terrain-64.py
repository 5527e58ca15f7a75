_base_ = '../_base_/shape-64_500.py'
