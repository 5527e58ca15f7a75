_base_ = '../_base_/views-200_37k5.py'
model = dict(network=dict(act_cfg=dict(type='mmext.SineActivation')))
