_base_ = '../_base_/shape-256_200k_sdf.py'
model = dict(network=dict(act_cfg=dict(type='mmext.SineActivation')))
