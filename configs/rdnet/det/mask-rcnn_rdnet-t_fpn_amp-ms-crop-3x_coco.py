_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# The released detectors normalize each output. No weights are loaded: train the classifier in ../cls first.
out_norm = dict(type='GN', num_groups=1)
model = dict(
    type='mmext.auto_channels',
    model='mmdet.MaskRCNN',
    backbone=dict(_delete_=True, type='mmext.RDNet', arch='T', out_norm=out_norm, drop_path_rate=0.4),
    neck=dict(in_channels='auto'),
)
optim_wrapper = dict(
    constructor='mmext.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(_delete_=True, layer_decay_rate=0.8, norm_decay_mult=0.0),
)
