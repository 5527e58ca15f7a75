# The protocol of WIRE and FINER: 25 views of 200 x 200, 4,096 rays in a step, no encoding.
_base_ = './runtime.py'
scene = dict(type='mmext.ViewDataset', root=None, scene='blocks', views=25, size=200, scale=0.53)
train_dataloader = dict(dataset=dict(split='train', rays=4096, **scene))
val_dataloader = dict(dataset=dict(split='val', **scene))
test_dataloader = dict(dataset=dict(split='test', **scene))
model = dict(
    type='mmext.SignalModel',
    operator=dict(type='mmext.VolumeRenderer', samples=128, density='exp', density_scale=1.0, directions=True),
    network=dict(
        type='mmext.RadianceMLP',
        width=182,
        depth=3,
        skips=(),
        view_width=182,
        view_depth=3,
        encoding=None,
        view_encoding=None,
    ),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=37_500, val_interval=7_500)
optim_wrapper = dict(optimizer=dict(type='Adam', lr=2e-4))
default_hooks = dict(checkpoint=dict(interval=7_500))
