_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# SEPC's maps for two branches need a dense head. Its pyramid convolutions alone serve any detector.
model = dict(neck=[_base_.model.neck, dict(type='mmext.PConvNeck', in_channels=256, out_channels=256, ibn=True)])
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
