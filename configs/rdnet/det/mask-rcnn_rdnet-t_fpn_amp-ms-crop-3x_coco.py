_base_ = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'

# The released detectors normalize each output. No weights are loaded: train the classifier in ../cls first.
out_norm = dict(type='GN', num_groups=1)
model = dict(
    backbone=dict(_delete_=True, type='mmext.RDNet', arch='T', out_norm=out_norm, drop_path_rate=0.4),
    neck=dict(in_channels=[256, 440, 744, 1040]),
)
optim_wrapper = dict(
    constructor='DefaultOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0)
)
