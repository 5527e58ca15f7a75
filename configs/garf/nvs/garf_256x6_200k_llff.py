# The network and the rates of GARF for photographs (root=, scale=). Without root the views are those of an embedded scene.
# Ours are even samples in the unit ball, where the authors space them evenly in inverse depth, and one schedule for all
# rates.
_base_ = './gauss_64x4_2000_blocks-noise005.py'
scene = dict(root=None, views=24, size=480)
train_dataloader = dict(dataset=dict(rays=2048, **scene))
val_dataloader = dict(dataset=scene)
test_dataloader = dict(dataset=scene)
features = dict(type='mmext.LearnedFeatures', act_cfg=dict(type='mmext.GaussianActivation', scale=50**0.5, center=True))
model = dict(
    operator=dict(samples=128, eval_samples=128, density_scale=1.0, directions=True, hold=2000),
    network=dict(
        _delete_=True,
        type='mmext.RadianceMLP',
        depth=6,
        skips=(4,),
        encoding=features,
        view_encoding=features,
        act_cfg=dict(type='mmext.GaussianActivation', scale=50**0.5),
    ),
)
train_cfg = dict(max_iters=200_000, val_interval=20_000)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(custom_keys={'operator.twist': dict(lr_mult=30)}))
param_scheduler = [dict(type='ExponentialLR', gamma=0.1 ** (1 / 250_000), by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=10_000))
