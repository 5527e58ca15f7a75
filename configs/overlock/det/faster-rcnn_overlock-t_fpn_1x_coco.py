_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# The authors' recipe. Starts from random weights, so that it builds without a download. A released classifier is loaded by
# init_cfg=dict(type='Pretrained', checkpoint='overlock_t_in1k_224.pth').
model = dict(
    backbone=dict(_delete_=True, type='mmext.OverLoCK', arch='T', drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 384, 640]),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
