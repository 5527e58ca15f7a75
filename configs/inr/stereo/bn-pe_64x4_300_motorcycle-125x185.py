_base_ = '../_base_/motorcycle-4_300.py'
model = dict(network=dict(norm_cfg=dict(type='BN')))
optim_wrapper = dict(optimizer=dict(lr=5e-3))
