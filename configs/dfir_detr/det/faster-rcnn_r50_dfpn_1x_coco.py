_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

model = dict(neck=dict(type='mmext.DFPN'))
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
