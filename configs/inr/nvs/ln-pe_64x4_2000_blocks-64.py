_base_ = '../_base_/views-64_2000.py'
model = dict(network=dict(norm_cfg=dict(type='LN')))
