# The recipe of NeuS: 512 rays of one view in a step, 64 even samples and four rounds of 16. With root= the views are yours;
# without it they are those of an embedded scene.
_base_ = '../_base_/surface-64_1200.py'
scene = dict(root=None, views=49, size=400)
train_dataloader = dict(dataset=dict(rays=512, one_view=True, **scene))
val_dataloader = dict(dataset=scene)
test_dataloader = dict(dataset=scene)
model = dict(
    operator=dict(samples=64, rounds=4, settle=50_000, directions=True),
    network=dict(
        _delete_=True,
        type='mmext.SDFField',
        sdf=dict(type='mmext.SDFMLP'),
        color=dict(type='mmext.CoordMLP', width=256, depth=4),
        view_encoding=dict(type='mmext.PositionalEncoding', num_octaves=4, base=1.0),
        weight_norm=True,
    ),
)
train_cfg = dict(max_iters=300_000, val_interval=20_000)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, end=5_000),
    dict(type='CosineAnnealingLR', eta_min=2.5e-5, by_epoch=False, begin=5_000, end=300_000),
]
default_hooks = dict(checkpoint=dict(interval=10_000))
