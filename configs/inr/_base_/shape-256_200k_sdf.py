# Signed distances at the size of BACON's and FINER's experiments: 10,000 points a step, 200,000 steps.
_base_ = './runtime.py'
shape = dict(type='mmext.ShapeDataset', shape='blocks', kind='sdf', size=128)
train_dataloader = dict(dataset=dict(split='train', points=10000, spread=0.01, **shape))
val_dataloader = dict(dataset=dict(split='test', **shape))
test_dataloader = dict(dataset=dict(split='test', **shape))
val_evaluator = dict(type='mmext.ShapeMetric')
test_evaluator = dict(type='mmext.ShapeMetric')
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.PointOperator', kind='sdf'),
    network=dict(type='mmext.CoordMLP', in_features=3, out_features=1, width=256, depth=3),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=200000, val_interval=20000)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-4), clip_grad=dict(max_norm=1.0))
