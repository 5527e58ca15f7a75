_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# One map of stride 16, that of the last block, becomes the strides 4, 8, 16, 32, 64.
model = dict(
    type='mmext.auto_channels',
    model='mmdet.MaskRCNN',
    backbone=dict(
        _delete_=True,
        type='mmext.PfNet',
        arch='ViT-S-max',
        out_indices=(-1,),
        out_norm=dict(type='mmext.LayerNorm2d', eps=1e-6),
    ),
    neck=dict(_delete_=True, type='mmext.SimpleFPN', in_channels='auto', out_channels=256, num_outs=5),
)
optim_wrapper = dict(
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8, norm_decay_mult=0.0),
)
