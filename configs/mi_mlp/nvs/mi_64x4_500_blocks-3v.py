_base_ = '../_base_/blocks-3v_500.py'
