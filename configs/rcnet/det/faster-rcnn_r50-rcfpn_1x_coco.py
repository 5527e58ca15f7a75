_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# With plain convolutions, which need no operators of mmcv in the neck.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(neck=dict(type='mmext.RCFPN', norm_cfg=norm_cfg, out_conv_cfg=None))
# Batch statistics want more images per GPU. The base learning rate is for 16 images: 4 GPUs x 4.
train_dataloader = dict(batch_size=4)
