# Three views of an embedded scene: no regularization, to see what the inputs alone do.
_base_ = '../../inr/_base_/views-64_2000.py'
views = dict(views=3)
train_dataloader = dict(dataset=views)
val_dataloader = dict(dataset=views)
test_dataloader = dict(dataset=views)
model = dict(network=dict(_delete_=True, type='mmext.MultiInputMLP', width=64, depth=4, octaves=6, color_octaves=6))
train_cfg = dict(max_iters=500, val_interval=250)
optim_wrapper = dict(optimizer=dict(lr=5e-3))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 500), by_epoch=False)]
