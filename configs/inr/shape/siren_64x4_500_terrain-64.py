_base_ = '../_base_/shape-64_500.py'
model = dict(network=dict(act_cfg=dict(type='mmext.SineActivation', w0=15.0)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
