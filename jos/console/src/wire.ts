// The shapes that cross the API, by short names. They are generated from openapi.json at each build, so a page that
// reads a field the API does not have fails the build.
import type { components } from "./wire.gen";

type Shapes = components["schemas"];
export type Job = Shapes["Job"];
export type JobList = Shapes["JobList"];
export type JobCreate = Shapes["JobCreate"];
export type JobEvent = Shapes["Event"];
export type EventList = Shapes["EventList"];
export type Progress = Shapes["Progress"];
export type ProgressList = Shapes["ProgressList"];
export type Input = Shapes["Input"];
export type InputList = Shapes["InputList"];
export type InputProgressList = Shapes["InputProgressList"];
export type Output = Shapes["Output"];
export type OutputList = Shapes["OutputList"];
export type CheckpointList = Shapes["CheckpointList"];
export type Traces = Shapes["Traces"];
export type Pipeline = Shapes["Pipeline-Output"];
export type PipelineList = Shapes["PipelineList"];
export type FileRecord = Shapes["FileRecord"];
export type FilePage = Shapes["FilePage"];
export type Upload = Shapes["Upload"];
export type UploadPart = Shapes["UploadPart"];
export type FileComplete = Shapes["FileComplete"];
export type QueueUse = Shapes["QueueUse"];
export type QueueUseList = Shapes["QueueUseList"];
export type Key = Shapes["Key"];
export type KeyList = Shapes["KeyList"];
export type ErrorItem = Shapes["ErrorItem"];
export type Json = { [name: string]: unknown };

export const FINAL = new Set(["COMPLETED", "FAILED", "CANCELLED"]);
export const STATUSES = ["PENDING", "ADMITTED", "RUNNING", "PREEMPTED", "COMPLETED", "FAILED", "CANCELLED"] as const;
