# NeRF's recipe for its synthetic scenes: 100 views of 400 x 400, 1,024 rays of one view in a step. With root= the views are
# yours; without it they are those of an embedded scene at the same size.
_base_ = './runtime.py'
scene = dict(type='mmext.ViewDataset', root=None, scene='blocks', views=100, size=400, scale=0.66)
train_dataloader = dict(dataset=dict(split='train', rays=1024, one_view=True, **scene))
val_dataloader = dict(dataset=dict(split='val', **scene))
test_dataloader = dict(dataset=dict(split='test', **scene))
model = dict(
    type='mmext.SignalModel',
    operator=dict(
        type='mmext.VolumeRenderer',
        samples=64,
        resamples=128,
        density='relu',
        density_scale=1.0,
        coarse='own',
        directions=True,
    ),
    network=dict(type='mmext.FieldPair', coarse=dict(type='mmext.RadianceMLP')),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=200_000, val_interval=20_000)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=5e-4))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 500_000), by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=10_000))
