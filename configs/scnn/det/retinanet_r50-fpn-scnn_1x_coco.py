_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# Rows wait for each other, so the messages pass on the coarse levels only.
model = dict(
    neck=[_base_.model.neck, dict(type='mmext.SCNN', in_channels=[256] * 5, out_channels=256, levels=(2, 3, 4))]
)
