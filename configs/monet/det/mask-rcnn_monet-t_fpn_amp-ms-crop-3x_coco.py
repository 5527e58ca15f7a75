_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

model = dict(
    type='mmext.auto_channels',
    model='mmdet.MaskRCNN',
    backbone=dict(_delete_=True, type='mmext.MONet', arch='T'),
    neck=dict(in_channels='auto'),
)
optim_wrapper = dict(
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.9, norm_decay_mult=0.0),
)
