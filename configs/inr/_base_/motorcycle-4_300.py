# Two photographs at a quarter of their size; every step sees all pixels.
_base_ = './runtime.py'
pair = dict(type='mmext.StereoDataset', size=125)
train_dataloader = dict(dataset=pair)
val_dataloader = dict(dataset=pair)
test_dataloader = dict(dataset=pair)
val_evaluator = dict(_delete_=True, type='mmext.StereoMetric')
test_evaluator = dict(_delete_=True, type='mmext.StereoMetric')
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.WarpOperator', max_disparity=18.0, blur_steps=200),
    network=dict(
        type='mmext.CoordMLP',
        out_features=1,
        width=64,
        depth=4,
        encoding=dict(type='mmext.PositionalEncoding', num_octaves=4),
    ),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=300, val_interval=100)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=2e-3))
