_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py'

# The stock auxiliary head counts less and less.
custom_hooks = [dict(type='mmext.CompanionWeightHook')]
