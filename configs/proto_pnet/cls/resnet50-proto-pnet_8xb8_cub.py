_base_ = 'mmpretrain::resnet/resnet50_8xb8_cub.py'

model = dict(neck=None, head=dict(_delete_=True, type='mmext.ProtoPNetHead', num_classes=200, in_channels=2048))

# The authors' rates: the backbone learns by 1e-4, add-on layers and prototypes by 3e-3, the last layer by 1e-4.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=3e-3, weight_decay=1e-3),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=1 / 30),
            'head.last': dict(lr_mult=1 / 30, decay_mult=0.0),
            'head.prototypes': dict(decay_mult=0.0),
        }
    ),
)
param_scheduler = dict(_delete_=True, type='StepLR', by_epoch=True, step_size=25, gamma=0.1)
custom_hooks = [dict(type='mmext.PrototypePushHook', warm_epochs=5, push_start=11, push_interval=10, last_epochs=20)]
find_unused_parameters = True
