_base_ = [
    'mmseg::_base_/datasets/nyu.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_25k.py',
]

# The authors' decoder on a ResNet-50 that also returns the map at stride 2.
crop_size = (480, 480)
model = dict(
    type='DepthEstimator',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=0,
        size=crop_size,
    ),
    backbone=dict(type='mmext.TimmBackbone', name='resnet50', out_indices=(0, 1, 2, 3, 4)),
    decode_head=dict(
        type='mmext.LocalPlanarGuidanceHead', in_channels=(64, 256, 512, 1024, 2048), channels=512, max_depth=10
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
train_dataloader = dict(batch_size=4)
# The authors' Adam: epsilon 1e-3, decay of the encoder only.
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-2, eps=1e-3),
    paramwise_cfg=dict(custom_keys={'decode_head': dict(decay_mult=0.0)}),
)
