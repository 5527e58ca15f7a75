_base_ = '../_base_/views-400_200k.py'
