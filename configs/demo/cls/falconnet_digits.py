# Stage 1: a small FalconNet with plain convolutions learns the digits.
_base_ = '../_base_/digits.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmext.FalconNet',
        arch=dict(depths=(2, 3, 3), channels=(32, 64, 128)),
        block=dict(type='mmext.MetaLightBlock', expansion=3, spatial=dict(type='Conv2d'), channel=dict(type='Conv2d')),
        out_indices=(2,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=128, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)

max_epochs = 16
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=4e-3, total_steps=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=4)
val_cfg = dict()
test_cfg = dict()
