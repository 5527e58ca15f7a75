# A signed distance from views of an embedded scene, 64 x 64: 256 rays in a step, a warm-up of 50 steps, then a cosine.
_base_ = './runtime.py'
scene = dict(type='mmext.ViewDataset', scene='blocks', views=24, size=64)
train_dataloader = dict(dataset=dict(split='train', rays=256, **scene))
val_dataloader = dict(dataset=dict(split='test', **scene))
test_dataloader = dict(dataset=dict(split='test', **scene))
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.SurfaceRenderer', samples=48, settle=360),
    network=dict(
        type='mmext.SDFField',
        sdf=dict(
            type='mmext.SDFMLP',
            out_features=33,
            width=64,
            depth=4,
            skips=(),
            encoding=dict(type='mmext.PositionalEncoding', num_octaves=4),
        ),
        color=dict(type='mmext.CoordMLP', width=64, depth=2),
    ),
)
custom_hooks = [
    dict(type='mmext.SignalHook'),
    dict(type='mmext.SurfaceHook'),
    dict(type='mmext.SignalPictureHook'),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1200, val_interval=600)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=2e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=False, begin=50, end=1200),
]
