// What a person can do about a job's error, by its code; the message itself says what happened.

const ADVICE: Record<string, string> = {
  all_inputs_failed: "Every input failed: look at the messages of the inputs below, mend the files or the configuration, and clone the job with them.",
  deadline_exceeded: "It took longer than its pipeline allows. Retry goes on from what was committed; more parallelism makes it faster.",
  driver_lost: "Its process died, again and again. Retry goes on from what was committed; if it dies again, ask for less at a time or look at the logs.",
  internal_error: "Something unexpected. The events below and the service's log say more; Retry goes on from what was committed.",
  invalid_input: "A file cannot be used as it is: the message names it. Mend it, upload it again, and clone the job.",
  job_unreadable: "Its own record in storage cannot be read. Whoever runs the service can check it with jos verify.",
  not_found: "Something it needs is gone, such as a file or a checkpoint. Upload it again, and clone the job.",
  storage_unavailable: "Storage did not answer. Retry once it does; nothing committed is lost.",
  validation_error: "The configuration does not fit the pipeline. Clone the job and change what the message names.",
};

export function advice(code: string): string {
  return ADVICE[code] ?? "The events below say how it came to this. Retry goes on from what was committed; Clone lets you change the configuration.";
}
