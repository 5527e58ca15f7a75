_base_ = '../_base_/shape-64_500.py'
# The set-up of WIRE's repository, with its loss and size of network: values between 0 and 1, and no logits.
shape = dict(type='mmext.ShapeDataset', shape='terrain', size=256)
train_dataloader = dict(dataset=dict(split='train', points=200000, near=0.0, **shape))
val_dataloader = dict(dataset=dict(split='test', **shape))
test_dataloader = dict(dataset=dict(split='test', **shape))
model = dict(
    operator=dict(type='mmext.PointOperator', loss='mse'),
    network=dict(width=256, depth=3, act_cfg=dict(type='mmext.WaveletActivation', w0=10.0, s0=40.0)),
)
train_cfg = dict(max_iters=16000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=5e-3))
param_scheduler = [dict(type='ExponentialLR', gamma=0.2 ** (1 / 16000), by_epoch=False)]
