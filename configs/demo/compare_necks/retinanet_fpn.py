# The reference: mmdet's FPN.
_base_ = '../_base_/compare_scenes.py'
