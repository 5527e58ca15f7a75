_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# The strides of the network begin at 8, and the pyramid makes the level of stride 4. Starts from random weights, so that it
# builds without a download. The authors train with norm_eval=True and from the classifier:
# init_cfg=dict(type='Pretrained', checkpoint='lsnet_s.pth').
model = dict(
    backbone=dict(_delete_=True, type='mmext.LSNet', arch='S', bias_side=14, out_indices=(0, 1, 2, 3)),
    neck=dict(_delete_=True, type='mmext.LSNetFPN', in_channels=[96, 192, 320, 448], out_channels=256, num_outs=5),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'mixer.biases': dict(decay_mult=0.0)}),
)
