# Cameras that are off by 4 degrees. Learned are the field and the cameras; the latter at a rate 1.5 times as high.
_base_ = '../../inr/_base_/views-64_2000.py'
train_dataloader = dict(dataset=dict(pose_noise=0.05, view_index=True))
model = dict(
    operator=dict(type='mmext.PosedVolumeRenderer', views=24, samples=40, eval_samples=80),
    network=dict(
        encoding=dict(_delete_=True, type='mmext.IdentityEncoding'),
        act_cfg=dict(type='mmext.GaussianActivation', scale=50**0.5),
    ),
)
custom_hooks = [
    dict(type='mmext.SignalHook'),
    dict(type='mmext.PoseHook', refine=50),
    dict(type='mmext.SignalPictureHook'),
]
train_cfg = dict(max_iters=2000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(custom_keys={'operator.twist': dict(lr_mult=1.5)}))
param_scheduler = [dict(type='ExponentialLR', gamma=0.03 ** (1 / 2000), by_epoch=False)]
