_base_ = '../_base_/surface-64_1200.py'
