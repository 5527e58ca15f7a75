# The reference of the two-stage detectors: mmdet's FPN.
_base_ = '../_base_/compare_scenes_two_stage.py'
