_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# Starts from random weights, so that it builds without a download. The authors start from the classifier:
# frozen_stages=1, norm_eval=True, init_cfg=dict(type='Pretrained', checkpoint='...', prefix='backbone.')
model = dict(backbone=dict(_delete_=True, type='mmext.RedNet', arch=50, out_indices=(0, 1, 2, 3)))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=2000),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
