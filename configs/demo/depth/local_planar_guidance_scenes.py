# Depth of the scenes: all digits have one size, so a small one is far away. Nothing is read from a disk.
_base_ = '../_base_/runtime.py'

default_scope = 'mmseg'
model = dict(
    type='DepthEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_val=127, size=(96, 96)
    ),
    backbone=dict(
        type='ResNet', depth=18, stem_channels=16, base_channels=16, out_indices=(0, 1, 2, 3), norm_cfg=dict(type='BN')
    ),
    decode_head=dict(
        type='mmext.LocalPlanarGuidanceHead',
        in_channels=(16, 32, 64, 128),
        channels=64,
        max_depth=10.0,
        dilations=(1, 2, 3),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

pipeline = [dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmext.DigitSceneDataset', split='train', number=320, size=96, pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='mmext.DigitSceneDataset', split='val', number=64, size=96, pipeline=pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='DepthMetric', min_depth_eval=0.1, max_depth_eval=10.0)
test_evaluator = val_evaluator

max_epochs = 3
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='OneCycleLR', eta_max=2e-3, total_steps=max_epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
