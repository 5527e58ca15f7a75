_base_ = '../_base_/views-400_200k.py'
model = dict(network=dict(coarse=dict(norm_cfg=dict(type='BN'))))
