# Digits told apart by prototypes: two epochs for all, a push onto patches, an epoch for the last layer, and so on.
_base_ = '../_base_/digits.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet',
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
    ),
    head=dict(
        type='mmext.ProtoPNetHead',
        num_classes=10,
        in_channels=64,
        prototypes_per_class=3,
        channels=32,
        cal_acc=True,
    ),
)
custom_hooks = [
    dict(type='mmext.PrototypePushHook', warm_epochs=0, push_start=2, push_interval=2, last_epochs=1, prune_epoch=4),
]

max_epochs = 6
optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=3e-3),
    paramwise_cfg=dict(custom_keys={'head.last': dict(lr_mult=0.3)}),
)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
