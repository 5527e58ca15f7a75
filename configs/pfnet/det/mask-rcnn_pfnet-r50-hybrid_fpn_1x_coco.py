_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

# Starts from random weights, so that it builds without a download. From a classifier: frozen_stages=1, norm_eval=True,
# init_cfg=dict(type='Pretrained', checkpoint='...', prefix='backbone.')
model = dict(
    type='mmext.auto_channels',
    model='mmdet.MaskRCNN',
    backbone=dict(_delete_=True, type='mmext.PfNet', arch='R50-hybrid'),
    neck=dict(in_channels='auto'),
)
