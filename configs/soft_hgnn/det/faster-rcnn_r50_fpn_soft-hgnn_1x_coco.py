_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# Strides 8, 16 and 32 meet at 16, as in the authors' detectors.
model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmext.SoftHGFusionNeck', in_channels=[256] * 5, levels=(1, 2, 3)),
    ],
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
