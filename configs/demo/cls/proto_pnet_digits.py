# Digits told apart by prototypes: two epochs for all, a push onto patches, an epoch for the last layer, and so on.
# As the authors' networks do, it starts from a trained backbone: that of deep_supervision_digits.py.
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
    ),
)
custom_hooks = [
    dict(type='mmext.PrototypePushHook', warm_epochs=0, push_start=2, push_interval=2, last_epochs=1, prune_epoch=4),
]
load_from = 'work_dirs/deep_supervision_digits/epoch_6.pth'

max_epochs = 6
optim_wrapper = dict(
    optimizer=dict(type='Adam', lr=1e-3),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}),
)
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
