_base_ = '../_base_/motorcycle-4_300.py'
