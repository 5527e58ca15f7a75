_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# The three finest levels of the pyramid meet at stride 16; the two coarse ones pass.
model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmext.SoftHGFusionNeck', in_channels=[256] * 5, levels=(0, 1, 2)),
    ],
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
