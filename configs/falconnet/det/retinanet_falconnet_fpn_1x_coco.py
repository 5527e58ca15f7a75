_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

# Starts from random weights, so that it builds without a download and trains all norms. To start from a trained classifier:
# init_cfg=dict(type='Pretrained', checkpoint='work_dirs/.../epoch_100.pth', prefix='backbone.')
model = dict(
    backbone=dict(_delete_=True, type='mmext.FalconNet', out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
