# Views of an embedded scene, 64 x 64. A step sees 512 rays; the rate falls to a tenth.
_base_ = './runtime.py'
scene = dict(type='mmext.ViewDataset', scene='blocks', views=24, size=64)
train_dataloader = dict(dataset=dict(split='train', rays=512, **scene))
val_dataloader = dict(dataset=dict(split='test', **scene))
test_dataloader = dict(dataset=dict(split='test', **scene))
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.VolumeRenderer', samples=48, eval_samples=96),
    network=dict(
        type='mmext.CoordMLP',
        in_features=3,
        out_features=4,
        width=64,
        depth=4,
        encoding=dict(type='mmext.PositionalEncoding', num_octaves=6),
    ),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-2))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 2000), by_epoch=False)]
