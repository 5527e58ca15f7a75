_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# One map of stride 4 becomes the strides 4, 8, 16, 32, 64.
model = dict(
    type='mmext.auto_channels',
    model='mmdet.MaskRCNN',
    backbone=dict(_delete_=True, type='mmext.WaveMix', arch='192-L3'),
    neck=dict(
        _delete_=True,
        type='mmext.SimpleFPN',
        in_channels='auto',
        out_channels=256,
        scales=(1, 1 / 2, 1 / 4, 1 / 8),
        num_outs=5,
    ),
)
optim_wrapper = dict(
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, norm_decay_mult=0.0),
)
