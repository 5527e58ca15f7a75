# The inside of a shape on a grid of 64 points per axis: 500 steps, the rate falls to a tenth.
_base_ = './runtime.py'
shape = dict(type='mmext.ShapeDataset', shape='terrain', size=64)
train_dataloader = dict(dataset=dict(split='train', points=8192, **shape))
val_dataloader = dict(dataset=dict(split='test', **shape))
test_dataloader = dict(dataset=dict(split='test', **shape))
val_evaluator = dict(type='mmext.ShapeMetric')
test_evaluator = dict(type='mmext.ShapeMetric')
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.PointOperator'),
    network=dict(type='mmext.CoordMLP', in_features=3, out_features=1, width=64, depth=4),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=500, val_interval=250)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-2))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 500), by_epoch=False)]
