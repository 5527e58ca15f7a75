_base_ = './retinanet_r50_fpn_sepc-ibn_1x_coco.py'

model = dict(neck=[_base_.model.neck[0], dict(_base_.model.neck[1], lcconv_deform=True)])
