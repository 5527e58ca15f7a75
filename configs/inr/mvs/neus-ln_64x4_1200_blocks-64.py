_base_ = '../_base_/surface-64_1200.py'
model = dict(network=dict(sdf=dict(norm_cfg=dict(type='LN'))))
